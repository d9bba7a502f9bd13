"""What a command does beyond parsing flags."""
