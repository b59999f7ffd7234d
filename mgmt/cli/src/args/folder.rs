//! `-v`.

use std::str::FromStr;

use clap::Args;
use vmm_api::FolderConfig;

/// Folders of this machine that a guest shares.
#[derive(Args, Debug, Default)]
pub struct FolderArgs {
    /// Share a folder of this machine with the guest: HOST:GUEST[:OPTIONS]; repeatable. OPTIONS, with commas
    /// between them: `ro` lets the guest only read, `uid=ID` and `gid=ID` say who your files belong to there
    /// [default: root]. Images that Lodge has built mount it at GUEST by themselves
    #[arg(short = 'v', long = "volume", value_name = "FOLDER", help_heading = "Devices")]
    pub volume: Vec<FolderArg>,
}

/// A folder of this machine, and where it is in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderArg(pub FolderConfig);

impl FromStr for FolderArg {
    type Err = String;

    fn from_str(text: &str) -> Result<FolderArg, String> {
        let form = || {
            "write HOST:GUEST[:ro], as in ./site:/srv/www:ro; a folder whose name has a colon can be given \
             in a configuration file"
                .to_owned()
        };
        let mut parts = text.split(':');
        let (Some(path), Some(guest), options, None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(form());
        };
        if path.is_empty() {
            return Err(form());
        }
        let (mut readonly, mut uid, mut gid) = (false, 0, None);
        for option in options.iter().flat_map(|options| options.split(',')) {
            let number =
                |text: &str| text.parse().map_err(|_| format!("{text:?} is no ID of a user"));
            match option.split_once('=') {
                None if option == "ro" => readonly = true,
                None if option == "rw" => readonly = false,
                Some(("uid", id)) => uid = number(id)?,
                Some(("gid", id)) => gid = Some(number(id)?),
                _ => return Err(format!("{option:?} is none of ro, rw, uid=ID and gid=ID")),
            }
        }
        let (path, guest, gid) = (path.into(), guest.to_owned(), gid.unwrap_or(uid));
        Ok(FolderArg(FolderConfig { path, guest, readonly, uid, gid }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_read() {
        let folder = |text: &str| text.parse::<FolderArg>().map(|arg| arg.0);
        let plain = FolderConfig { path: "./a".into(), guest: "/b".into(), ..Default::default() };
        assert_eq!(folder("./a:/b"), Ok(plain.clone()));
        assert_eq!(folder("./a:/b:rw"), Ok(plain.clone()));
        assert_eq!(folder("./a:/b:ro"), Ok(FolderConfig { readonly: true, ..plain.clone() }));
        let owned = FolderConfig { uid: 1000, gid: 1000, ..plain.clone() };
        assert_eq!(folder("./a:/b:uid=1000"), Ok(owned));
        let owned = FolderConfig { readonly: true, uid: 5, gid: 6, ..plain };
        assert_eq!(folder("./a:/b:uid=5,gid=6,ro"), Ok(owned));
        for bad in ["", "a", ":/b", "a:/b:", "a:/b:ro:", "a:/b:uid=x", "a:/b:uid=-1", "a:/b:rx"] {
            assert!(folder(bad).is_err(), "{bad:?}");
        }
    }
}
