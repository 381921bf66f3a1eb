"""Reports: one page of HTML that tells all about an ensemble."""
