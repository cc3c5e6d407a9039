"""Archives of images (PACS): results to them, series from them.

`address.py` reads what names one, `store.py` speaks DICOM's own protocol and
`web.py` DICOMweb, with libraries that are imported where an archive is named.
"""
