"""Video files: when each frame is shown, which frames a clip takes, and how they are decoded."""
