"""What happens to a store after it was made: documents removed, segments compacted, stores merged, parts taken out."""
