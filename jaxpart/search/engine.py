"""stub being written by the lead"""
