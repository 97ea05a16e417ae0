"""One inference call: parsed, counted, admitted, queued, relayed and settled."""
