"""Files to events and images: one reader a format."""
