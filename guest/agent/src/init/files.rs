//! The files by which programs know the machine's name and its name servers.

use std::fs;
use std::io;
use std::net::Ipv4Addr;

/// For `map_err`: to what it happened.
pub fn about(path: &str) -> impl FnOnce(io::Error) -> io::Error {
    let path = path.to_owned();
    move |error| io::Error::new(error.kind(), format!("{path}: {error}"))
}

/// Gives the machine its name. A root file system where that cannot be written is one of which
/// nobody asks it.
pub fn name_machine(hostname: &str) {
    let _ = rustix::system::sethostname(hostname.as_bytes());
    let _ = fs::create_dir_all("/etc");
    let _ = fs::write("/etc/hostname", format!("{hostname}\n"));
    let _ = fs::write("/etc/hosts", hosts(hostname));
}

fn hosts(hostname: &str) -> String {
    format!("127.0.0.1 localhost\n127.0.1.1 {hostname}\n::1 localhost ip6-localhost ip6-loopback\n")
}

/// Says which name servers there are, and the domain in which names are looked for first.
pub fn name_servers(servers: &[Ipv4Addr], domain: Option<&str>) {
    if servers.is_empty() {
        return;
    }
    let path = "/etc/resolv.conf";
    // In images it is now and then a link to what would be made while a system starts.
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) {
        let _ = fs::remove_file(path);
    }
    let _ = fs::write(path, resolv_conf(servers, domain));
}

fn resolv_conf(servers: &[Ipv4Addr], domain: Option<&str>) -> String {
    let mut text = String::new();
    let is_name = |domain: &&str| {
        domain.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
    };
    if let Some(domain) = domain.filter(is_name).filter(|domain| !domain.is_empty()) {
        text += &format!("search {domain}\n");
    }
    for server in servers {
        text += &format!("nameserver {server}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_written_as_resolvers_read_them() {
        let servers = [Ipv4Addr::new(10, 0, 2, 3), Ipv4Addr::new(1, 1, 1, 1)];
        let text = resolv_conf(&servers, Some("lab"));
        assert_eq!(text, "search lab\nnameserver 10.0.2.3\nnameserver 1.1.1.1\n");
        assert_eq!(resolv_conf(&servers[..1], Some("a\nb")), "nameserver 10.0.2.3\n");
    }
}
