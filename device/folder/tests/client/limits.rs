//! How much a client makes this process hold, and that it does not notice.

use std::fs;

use folder::Limits;

use crate::driver::*;

fn limits() -> Limits {
    Limits { nodes: 1000, node_descriptors: 8, handles: 4 }
}

#[test]
fn files_are_opened_again_when_they_are_needed() {
    let mut c = Client::with_limits(limits());
    let mut nodes = Vec::new();
    for n in 0..30 {
        fs::create_dir_all(c.host.join(format!("{n}/a/b"))).unwrap();
        fs::write(c.host.join(format!("{n}/a/b/f")), format!("{n}")).unwrap();
        nodes.push(c.walk(&format!("{n}/a/b/f")));
        assert!(descriptors_below(&c.host) <= 12);
    }
    for (n, node) in nodes.iter().enumerate() {
        let handle = c.open(*node, O_RDONLY).unwrap();
        assert_eq!(c.read(handle, 0, 10).unwrap(), format!("{n}").as_bytes());
        c.release(handle).unwrap();
    }
    assert!(descriptors_below(&c.host) <= 12);
}

#[test]
fn what_has_moved_is_found_if_the_guest_has_moved_it() {
    let mut c = Client::with_limits(limits());
    fs::create_dir_all(c.host.join("a/b")).unwrap();
    fs::write(c.host.join("a/b/f"), "it").unwrap();
    let node = c.walk("a/b/f");
    let [a, b] = ["a", "a/b"].map(|path| c.walk(path));
    c.rename((a, "b"), (ROOT, "moved")).unwrap();
    c.rename((b, "f"), (a, "renamed")).unwrap();
    let evict = |c: &mut Client| {
        for n in 0..30 {
            fs::write(c.host.join(format!("x{n}")), "").unwrap();
            c.look_up(ROOT, &format!("x{n}")).unwrap();
        }
    };
    evict(&mut c);
    let handle = c.open(node, O_RDONLY).unwrap();
    assert_eq!(c.read(handle, 0, 10).unwrap(), b"it");
    c.release(handle).unwrap();
    // If the host has, it is looked for anew; and no other file is taken for it.
    evict(&mut c);
    fs::rename(c.host.join("a/renamed"), c.host.join("elsewhere")).unwrap();
    assert_eq!(c.attributes(node), Err(ESTALE));
    fs::write(c.host.join("a/renamed"), "another").unwrap();
    assert_eq!(c.attributes(node), Err(ESTALE));
    assert_eq!(c.look_up(ROOT, "elsewhere"), Ok(node));
    assert!(c.attributes(node).is_ok());
}

#[test]
fn open_files_have_an_end_and_stay() {
    let mut c = Client::with_limits(limits());
    let made: Vec<_> =
        (0..4).map(|n| c.create(ROOT, &format!("{n}"), O_RDWR, 0o600).unwrap()).collect();
    assert_eq!(c.create(ROOT, "more", O_RDWR, 0o600), Err(ENFILE));
    assert!(!c.host.join("more").exists());
    assert_eq!(c.open(made[0].0, O_RDONLY), Err(ENFILE));
    assert_eq!(c.ask(op::OPENDIR, ROOT, body().u64(0)), Err(ENFILE));
    // Nameless, and many others known: those that are open are there.
    for (n, (node, handle)) in made.iter().enumerate() {
        c.ask(op::UNLINK, ROOT, body().name(&format!("{n}"))).unwrap();
        (0..30).for_each(|n| {
            fs::write(c.host.join(format!("x{n}")), "").unwrap();
            c.look_up(ROOT, &format!("x{n}")).unwrap();
        });
        assert!(c.attributes(*node).is_ok());
        c.release(*handle).unwrap();
    }
    assert!(c.create(ROOT, "more", O_RDWR, 0o600).is_ok());
}

#[test]
fn nodes_have_an_end_until_they_are_forgotten() {
    let mut c = Client::with_limits(limits());
    for n in 0..1001 {
        fs::write(c.host.join(format!("{n}")), "").unwrap();
    }
    let nodes: Vec<_> = (0..1000).map(|n| c.look_up(ROOT, &format!("{n}")).unwrap()).collect();
    assert_eq!(c.look_up(ROOT, "1000"), Err(ENFILE));
    assert_eq!(c.look_up(ROOT, "999"), Ok(nodes[999]));
    let all = nodes.iter().fold(body().u32(1000).u32(0), |body, node| body.u64(*node).u64(2));
    c.tell(op::BATCH_FORGET, 0, all);
    assert!(c.look_up(ROOT, "1000").is_ok());
    assert!(descriptors_below(&c.host) <= 3);
    // More are promised than there are.
    c.tell(op::BATCH_FORGET, 0, body().u32(u32::MAX).u32(0).u64(2).u64(1));
}
