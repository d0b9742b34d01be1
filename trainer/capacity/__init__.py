"""Room on disks and in the store's memory, watched before it runs out."""
