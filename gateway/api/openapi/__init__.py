"""The gateway's interface as an OpenAPI 3.1 document: what may be asked, and what is answered."""
