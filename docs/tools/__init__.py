"""The programs that write parts of the documentation, and build the site: `make docs`."""
