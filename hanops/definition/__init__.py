"""What a Han stack means: the truth, the checks of arguments, the layout of sign bits."""
