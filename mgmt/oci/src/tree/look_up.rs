//! How names lead to nodes: symbolic links are followed as a guest would that has the tree as its
//! root, where `..` of the root is the root.

use super::entry::{MAX_PATH, Reason};
use super::{Attributes, Id, Kind, Node, ROOT, Tree};

/// How many links a path may have, as Linux has it (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// The mode of directories that are there only because something is in them.
const IMPLIED_MODE: u32 = 0o755;

impl Tree {
    /// The directory in which the last name of a path is to be found. `make`: what is missing on the
    /// way is made, as a part of this layer.
    pub(super) fn parent(&mut self, names: &[Vec<u8>], make: bool) -> Result<Option<Id>, Reason> {
        let (_, directories) = names.split_last().ok_or("is the root")?;
        self.directory(directories, make)
    }

    fn directory(&mut self, names: &[Vec<u8>], make: bool) -> Result<Option<Id>, Reason> {
        // The way from the root, for `..`, and how long the paths are: links make them longer than names.
        let mut way = vec![(ROOT, 0)];
        // What is still to be walked, the next one last.
        let mut left: Vec<Vec<u8>> = names.iter().rev().cloned().collect();
        let mut links = 0;
        while let Some(name) = left.pop() {
            let (here, length) = way.last().copied().unwrap_or((ROOT, 0));
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    if way.len() > 1 {
                        way.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let length = length + 1 + name.len();
            if length > MAX_PATH {
                return Err(format!("is behind a path of more than {MAX_PATH} bytes"));
            }
            let Some(next) = self.children(here).and_then(|children| children.get(&name)).copied()
            else {
                if !make {
                    return Ok(None);
                }
                way.push((self.imply(here, name)?, length));
                continue;
            };
            match self.nodes.get(next).map(|node| &node.kind) {
                Some(Kind::Directory(_)) => way.push((next, length)),
                Some(Kind::Link(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err("leads by more links than Linux follows".into());
                    }
                    if target.first() == Some(&b'/') {
                        way.truncate(1);
                    }
                    left.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                }
                _ => return Err("is in something that is no directory".into()),
            }
        }
        if make {
            for (id, _) in &way {
                self.touch(*id);
            }
        }
        Ok(way.last().map(|(id, _)| *id))
    }

    fn imply(&mut self, parent: Id, name: Vec<u8>) -> Result<Id, Reason> {
        let attributes = Attributes { mode: IMPLIED_MODE, ..Attributes::default() };
        let id = self.new_node(attributes, Kind::Directory(Default::default()))?;
        if let Some(children) = self.children_mut(parent) {
            children.insert(name, id);
        }
        Ok(id)
    }

    /// Adds a node to which no name leads yet.
    pub(super) fn new_node(&mut self, attributes: Attributes, kind: Kind) -> Result<Id, Reason> {
        // Directories that are implied count as well: names can be deep.
        if self.nodes.len() > self.limits.entries {
            return Err(format!("would be one of more than {} files", self.limits.entries));
        }
        self.nodes.push(Node { attributes, kind, layer: self.layer });
        Ok(self.nodes.len() - 1)
    }

    /// Notes that this layer says something about a node.
    pub(super) fn touch(&mut self, id: Id) {
        if let Some(node) = self.nodes.get_mut(id) {
            node.layer = self.layer;
        }
    }
}
