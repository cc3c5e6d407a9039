"""Masks as clinics take them: DICOM objects, surfaces, and a report.

DICOM objects are written for the slices of a series
(`data.formats.dicom.series`). All of it needs the extra `clinic`.
"""
