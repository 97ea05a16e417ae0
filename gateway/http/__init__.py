"""HTTP/1.1 and ASGI mechanics: the connection, the request's context, headers, the error envelope."""
