"""Results of any command: shown in a browser, written as inputs of other programs."""
