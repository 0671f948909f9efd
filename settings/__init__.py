"""What can be set: one frozen dataclass per concern, which says of every setting all there is to say."""
