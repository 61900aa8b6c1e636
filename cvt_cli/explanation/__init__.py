"""What in a picture its label comes from; and its picture."""
