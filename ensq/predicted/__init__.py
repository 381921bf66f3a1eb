"""What becomes of predictions: files, summaries, model deviations, and the frames worth a label."""
