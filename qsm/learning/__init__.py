"""What one seed computes, compiled for S seeds, and where its arrays lie."""
