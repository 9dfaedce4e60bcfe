"""What finds objects on frames."""
