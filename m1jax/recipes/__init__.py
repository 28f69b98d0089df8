"""What ties several rooms together: one file a verb."""
