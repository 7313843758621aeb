"""The Triton backend; imported when a call first reaches it, never by `import hanops`."""
