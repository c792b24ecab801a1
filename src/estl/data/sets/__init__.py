"""The data sets, one a file; `estl.data` names them."""
