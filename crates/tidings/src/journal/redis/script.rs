//! The scripts that alone change what is in Redis, and read what has to agree.
//!
//! Each is sent by its hash; a server that does not know it yet is told. Redis runs one at a time,
//! so what a script does is one commit, in memory and in the append-only file.

/// A script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Script {
    Adopt,
    Append,
    Read,
    Look,
    Change,
}

impl Script {
    pub(super) const ALL: [Self; 5] =
        [Self::Adopt, Self::Append, Self::Read, Self::Look, Self::Change];

    /// Its text. What only reads or makes room also runs on a server whose memory is full.
    pub(super) fn text(self) -> String {
        let common = include_str!("common.lua");
        match self {
            Self::Adopt => format!("#!lua\n{}", include_str!("adopt.lua")),
            Self::Append => format!("#!lua\n{common}{}", include_str!("append.lua")),
            Self::Read => format!("#!lua flags=no-writes\n{common}{}", include_str!("read.lua")),
            Self::Look => format!("#!lua flags=no-writes\n{common}{}", include_str!("look.lua")),
            Self::Change => {
                format!("#!lua flags=allow-oom\n{common}{}", include_str!("change.lua"))
            }
        }
    }
}
