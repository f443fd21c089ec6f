"""The replay buffer, and its rows on disk."""
