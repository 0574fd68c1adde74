"""Two or more versions of the product beside each other: compared, or searched for a culprit."""
