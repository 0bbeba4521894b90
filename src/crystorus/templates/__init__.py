"""Starting from what is known: a library of crystals to put other elements into."""
