"""Looking inside what was trained."""
