//! The outer archive of a package: the common `ar` format as in deb(5), names of at most 16 bytes.
//!
//! Read here and not by a library, because what is wanted is more than reading: a package whose members do not add up
//! to its length is refused before anything is unpacked.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// One member: where its bytes are in the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) at: u64,
    pub(crate) len: u64,
}

const MAGIC: &[u8; 8] = b"!<arch>\n";
const HEADER: usize = 60;
/// deb(5) knows three members and allows others after them; a signature is the only one in use.
const MAX_MEMBERS: usize = 16;

/// Whether a file starts as an archive does.
pub(crate) fn is_archive(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// All members.
///
/// # Errors
/// What is wrong with the archive.
pub(crate) fn members(file: &File) -> Result<Vec<Member>, String> {
    let end = file.metadata().map_err(|e| e.to_string())?.len();
    let mut magic = [0; 8];
    file.read_exact_at(&mut magic, 0)
        .map_err(|_| "truncated: no archive header".to_owned())?;
    if &magic != MAGIC {
        return Err("not an ar archive".to_owned());
    }
    let mut members = Vec::new();
    let mut at = MAGIC.len() as u64;
    while at < end {
        if members.len() == MAX_MEMBERS {
            return Err(format!("more than {MAX_MEMBERS} members"));
        }
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, at)
            .map_err(|_| format!("truncated: member header at byte {at}"))?;
        let member = member(&header, at + HEADER as u64)
            .ok_or_else(|| format!("malformed member header at byte {at}"))?;
        let after = member
            .at
            .checked_add(member.len)
            .ok_or_else(|| format!("malformed member at byte {at}"))?;
        if after > end {
            return Err(format!(
                "truncated: {} ends at byte {after}, the file at {end}",
                member.name
            ));
        }
        members.push(member);
        // Members start at even bytes; the padding after the last one may be missing.
        at = after + after % 2;
    }
    Ok(members)
}

/// `name[16] mtime[12] uid[6] gid[6] mode[8] size[10] "`\n"`.
fn member(header: &[u8; HEADER], at: u64) -> Option<Member> {
    if header.get(58..)? != b"`\n" {
        return None;
    }
    let text = |range: std::ops::Range<usize>| std::str::from_utf8(header.get(range)?).ok();
    let name = text(0..16)?.trim_end().trim_end_matches('/').to_owned();
    let len = text(48..58)?.trim_end().parse().ok()?;
    Some(Member { name, at, len })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn max_members_stops_an_archive_of_nothing_else() {
        let archive = |count| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(MAGIC).unwrap();
            for _ in 0..count {
                let header = format!("{:<16}{:<32}{:<10}`\n", "m", 0, 0);
                file.write_all(header.as_bytes()).unwrap();
            }
            members(&file).map(|members| members.len())
        };
        assert_eq!(archive(MAX_MEMBERS), Ok(MAX_MEMBERS));
        assert!(archive(MAX_MEMBERS + 1).is_err());
    }
}
