"""Whether an output is what its receipt says: by its sums, by making it again, by what other readers say."""
