"""What follows the network at inference: scores to detections, and masks to run lengths."""
