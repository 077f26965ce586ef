"""Files at URLs (s3://, gs://, hf://, http://): read, retried, checked for their length; nothing is cut silently."""
