"""Labels as keywords where photo programs look for them: XMP sidecars, or in the pictures."""
