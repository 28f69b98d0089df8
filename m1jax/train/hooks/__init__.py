"""What happens beside the steps: the journal and the progress bar."""
