//! Users and groups, as /etc/passwd and /etc/group have them (passwd(5), group(5)).
//!
//! A static program cannot ask other sources of names (nsswitch.conf(5)).

use std::fs;
use std::io;
use std::path::Path;

/// Who a command runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The name, if there is one.
    pub name: String,
    /// The number.
    pub uid: u32,
    /// The number of the main group.
    pub gid: u32,
    /// The numbers of all groups.
    pub groups: Vec<u32>,
    /// The home directory.
    pub home: String,
    /// The shell.
    pub shell: String,
}

/// Finds `USER` or `USER:GROUP`, names or numbers, in the files in `etc`.
pub fn find(who: &str, etc: &Path) -> io::Result<User> {
    let read = |name: &str| fs::read_to_string(etc.join(name)).unwrap_or_default();
    find_in(who, &read("passwd"), &read("group"))
        .ok_or_else(|| io::Error::other(format!("there is no user {who} in the guest")))
}

fn find_in(who: &str, passwd: &str, group: &str) -> Option<User> {
    let (who, wanted_group) = match who.split_once(':') {
        Some((who, group)) => (who, Some(group)),
        None => (who, None),
    };
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
        fields.first() == Some(&who) || fields.get(2).is_some_and(|uid| *uid == who)
    });
    let mut user = match entry.as_deref() {
        Some(&[name, _, uid, gid, _, home, shell]) => User {
            name: name.to_owned(),
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            groups: Vec::new(),
            home: home.to_owned(),
            shell: shell.to_owned(),
        },
        // A number need not have a name; root is there in any guest.
        _ if who == "root" => User::default(),
        _ => User { uid: who.parse().ok()?, ..User::default() },
    };
    let groups = || group.lines().map(|line| line.split(':').collect::<Vec<_>>());
    if let Some(wanted) = wanted_group {
        let entry = groups().find(|fields| fields.first() == Some(&wanted));
        let number = entry.as_ref().and_then(|fields| fields.get(2)).copied().unwrap_or(wanted);
        user.gid = number.parse().ok()?;
    }
    user.groups = groups()
        .filter(|fields| {
            let members = fields.get(3).copied().unwrap_or_default();
            !user.name.is_empty() && members.split(',').any(|member| member == user.name)
        })
        .filter_map(|fields| fields.get(2)?.parse().ok())
        .chain([user.gid])
        .collect();
    Some(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        lodge:x:1000:1000:,,,:/home/lodge:/bin/sh\nbroken:x:y\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:lodge,other\nlodge:x:1000:\nlast:x:5:lodge\n";

    #[test]
    fn users_are_found_by_name_and_number() {
        let lodge = find_in("lodge", PASSWD, GROUP).unwrap();
        assert_eq!((lodge.uid, lodge.gid, lodge.home.as_str()), (1000, 1000, "/home/lodge"));
        assert_eq!(lodge.groups, [27, 5, 1000]);
        assert_eq!(find_in("1000", PASSWD, GROUP), Some(lodge));
        assert_eq!(find_in("lodge:sudo", PASSWD, GROUP).unwrap().gid, 27);
        assert_eq!(find_in("lodge:42", PASSWD, GROUP).unwrap().gid, 42);
        let nameless = find_in("4711:0", PASSWD, GROUP).unwrap();
        assert_eq!((nameless.uid, nameless.gid, nameless.groups.as_slice()), (4711, 0, &[0][..]));
        for unknown in ["nobody", "", "lodge:none", "broken", "-1", "99999999999"] {
            assert_eq!(find_in(unknown, PASSWD, GROUP), None, "{unknown}");
        }
        // As in an initial RAM disk.
        assert_eq!(find_in("root", "", "").unwrap().uid, 0);
    }
}
