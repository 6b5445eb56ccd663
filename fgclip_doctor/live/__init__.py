"""A running training -> a recording: what is seen only while it goes on. Nothing here changes what it computes."""
