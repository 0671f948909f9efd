"""Ways to spend computation at test time: what is sampled, and which of the samples is the answer."""
