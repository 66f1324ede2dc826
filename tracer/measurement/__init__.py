"""What is measured of a pair of calls: arguments and outputs paired, a row for each value."""
