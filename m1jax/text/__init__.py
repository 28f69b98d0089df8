"""Text as it comes: sources and folders to documents, and what is set aside and why."""
