"""What `relay demo` shows: an upstream of our own, and everything of the relay in front of it."""
