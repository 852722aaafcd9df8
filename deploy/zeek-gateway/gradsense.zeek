##! What gradsense wants of Zeek. Everything else may stay as it is.

# gradsense reads TSV as well; JSON has no header that a rotation could tear off.
redef LogAscii::use_json = T;

# Every hour conn.log becomes conn.2026-11-22-23-00-00.log in the same folder, where gradsense
# finds what it had not read yet. Under zeekctl, LogRotationInterval of zeekctl.cfg counts instead.
redef Log::default_rotation_interval = 1 hr;
