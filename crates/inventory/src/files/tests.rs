use super::*;

fn seen(inode: u64) -> FileSeen {
    FileSeen {
        disk: 0,
        partition: 1,
        inode,
        generation: 7,
        bytes: 5000,
        path: format!("/{inode}.php").into_bytes(),
    }
}

fn held(file: u32, at: u64, gpa: u64, digest: u8) -> FileHeld {
    FileHeld {
        file,
        at,
        gpa: Gpa(gpa),
        len: 4096,
        written: false,
        digest: [digest; 32],
    }
}

impl Files {
    fn read(&mut self, at_ns: u64, gpa: u64, digest: u8, space: Option<u32>) -> Option<PieceRead> {
        self.accessed(at_ns, Gpa(gpa), Some([digest; 32]), space.map(SpaceId))
    }
}

#[test]
fn who_accesses_memory_that_holds_a_piece_has_read_it() {
    let mut files = Files::default();
    files.seen(1, seen(12));
    files.held(&held(1, 0, 0x5000, 1));
    files.held(&held(1, 4096, 0x9000, 2));
    assert_eq!(files.read_ones().count(), 0, "held, and not read");
    for (at, gpa, digest, space) in [(10, 0x5000, 1, 3), (20, 0x9000, 2, 3), (30, 0x5000, 1, 4)] {
        assert!(files.read(at, gpa, digest, Some(space)).is_some());
    }
    let [file] = files.read_ones().collect::<Vec<_>>()[..] else {
        panic!()
    };
    assert_eq!(file.pieces, BTreeMap::from([(0, [1; 32]), (4096, [2; 32])]));
    let readers: Vec<_> = file
        .readers
        .iter()
        .map(|r| (r.space.0, r.first_ns, r.pieces.len()))
        .collect();
    assert_eq!(readers, [(3, 10, 2), (4, 30, 1)]);
}

#[test]
fn memory_that_holds_something_else_is_no_files_any_more() {
    let mut files = Files::default();
    files.seen(1, seen(12));
    files.held(&held(1, 0, 0x5000, 1));
    assert!(files.read(1, 0x5000, 9, Some(3)).is_none());
    assert!(files.read(2, 0x5000, 1, Some(3)).is_none());
    files.held(&held(1, 0, 0x5000, 1));
    assert!(files.accessed(3, Gpa(0x5000), None, Some(SpaceId(3))).is_none());
    assert!(files.read(4, 0x5000, 1, Some(3)).is_none());
    assert_eq!(files.left_out().changed, 1);
}

#[test]
fn a_file_that_is_renamed_keeps_its_readers_and_up_to_max_former_of_its_names() {
    let mut files = Files::default();
    files.seen(1, seen(12));
    files.held(&held(1, 0, 0x5000, 1));
    assert!(files.read(1, 0x5000, 1, Some(3)).is_some());
    let mut rename = |to: &str| {
        let path = to.as_bytes().to_vec();
        files.seen(1, FileSeen { path, ..seen(12) });
        let [file] = files.read_ones().collect::<Vec<_>>()[..] else {
            panic!()
        };
        assert_eq!(
            (file.readers.len(), file.about.path.as_slice()),
            (1, to.as_bytes())
        );
        file.former_paths.len()
    };
    assert_eq!((rename("/a"), rename("/a"), rename("/12.php")), (1, 1, 1));
    let counts: Vec<usize> = (0..MAX_FORMER + 5).map(|n| rename(&format!("/{n}"))).collect();
    assert_eq!(counts.last(), Some(&MAX_FORMER));
    let file = files.read_ones().next().unwrap();
    assert_eq!(file.former_paths[..2], [b"/a".to_vec(), b"/12.php".to_vec()]);
    assert_eq!(file.paths().count(), MAX_FORMER + 1);
}

#[test]
fn a_server_that_begins_anew_gives_other_numbers_to_the_same_files() {
    let mut files = Files::default();
    files.seen(1, seen(12));
    files.held(&held(1, 0, 0x5000, 1));
    files.seen(1, seen(99));
    files.seen(2, seen(12));
    files.held(&held(1, 0, 0x6000, 3));
    let mut inode = |gpa, digest| {
        let piece = files.read(1, gpa, digest, None).unwrap();
        files.get(piece.file).unwrap().about.inode
    };
    assert_eq!((inode(0x5000, 1), inode(0x6000, 3)), (12, 99));
    assert_eq!(files.files.len(), 2);
}

#[test]
fn what_is_rewritten_or_cut_off_has_to_be_read_anew() {
    let mut files = Files::default();
    files.seen(1, seen(12));
    for (at, gpa, digest) in [(0, 0x5000, 1), (4096, 0x6000, 2)] {
        files.held(&held(1, at, gpa, digest));
        files.read(1, gpa, digest, Some(3));
    }
    files.held(&held(1, 0, 0x5000, 1));
    let now = |files: &Files| {
        let file = files.get(FileId(0)).unwrap();
        (file.pieces.keys().copied().collect::<Vec<_>>(), file.rewritten)
    };
    assert_eq!(now(&files), (vec![0, 4096], 0), "the same again");
    files.held(&held(1, 0, 0x7000, 9));
    assert_eq!(now(&files), (vec![4096], 1));
    files.read(1, 0x7000, 9, Some(3));
    assert_eq!(now(&files), (vec![0, 4096], 1));
    files.seen(
        1,
        FileSeen {
            bytes: 4096,
            ..seen(12)
        },
    );
    assert_eq!((now(&files), files.pieces), ((vec![0], 2), 3));
}

#[test]
fn what_a_reader_has_mapped_it_did_not_copy() {
    let mut files = Files::default();
    files.seen(1, seen(12));
    for (at, gpa) in [(0, 0x5000), (4096, 0x6000)] {
        files.held(&held(1, at, gpa, 1));
        for space in [3, 4] {
            files.read(1, gpa, 1, Some(space));
        }
    }
    assert_eq!(files.unsettled().collect::<Vec<_>>(), [SpaceId(3), SpaceId(4)]);
    assert_eq!(
        files.unsettled_in(SpaceId(3)),
        HashSet::from([Gpa(0x5000), Gpa(0x6000)])
    );
    files.settle(SpaceId(3), Some(&HashSet::from([Gpa(0x6000)])));
    files.settle(SpaceId(4), None);
    assert_eq!((files.unsettled().count(), files.unsettled_count), (0, 0));
    let how = |reader: &Reader| reader.pieces.values().map(|piece| piece.how).collect::<Vec<_>>();
    let file = files.get(FileId(0)).unwrap();
    assert_eq!(how(&file.readers[0]), [How::Copied, How::Mapped]);
    assert_eq!(how(&file.readers[1]), [How::NotKnown; 2]);
}

#[test]
fn max_unsettled_bounds_what_is_to_be_looked_at() {
    let mut files = Files::default();
    files.seen(1, seen(12));
    files.held(&held(1, 0, 0x5000, 1));
    for space in 0..u32::try_from(MAX_UNSETTLED).unwrap() + 9 {
        files.files[0].readers.clear();
        files.read(1, 0x5000, 1, Some(space));
    }
    assert_eq!(files.unsettled().count(), MAX_UNSETTLED);
}

#[test]
fn of_each_disk_the_most_counts_that_its_servers_said_was_not_seen() {
    let mut files = Files::default();
    files.unseen(0, &[("inodes", 4), ("volumes", 0)]);
    files.unseen(1, &[("inodes", 2)]);
    files.unseen(0, &[("inodes", 1), ("volumes", 0)]);
    assert_eq!(files.unseen_by_reason(), BTreeMap::from([("inodes", 6)]));
}

#[test]
fn what_cannot_be_told_is_counted() {
    let mut files = Files::default();
    files.held(&held(1, 0, 0x5000, 1));
    files.seen(1, seen(12));
    files.held(&held(1, 0, 0x5200, 1));
    assert_eq!((files.left_out().of_no_file, files.left_out().in_part), (1, 1));
}

#[test]
fn who_read_something_is_known_by_its_program_when_it_is_only_counted() {
    let mut files = Files::default();
    files.seen(1, seen(1));
    files.held(&held(1, 0, 0x1000, 3));
    files.read(5, 0x1000, 3, Some(9));
    files.gone(SpaceId(9), Some("/usr/bin/tar"));
    files.gone(SpaceId(8), Some("/usr/bin/cat"));
    assert_eq!(files.program_of_gone(SpaceId(9)), Some("/usr/bin/tar"));
    assert_eq!(files.program_of_gone(SpaceId(8)), None, "it has read nothing");
}

#[test]
fn max_files_max_held_max_readers_and_max_pieces_bound_what_is_kept() {
    let mut files = Files::default();
    for inode in 0..=MAX_FILES as u64 {
        files.seen(u32::try_from(inode).unwrap(), seen(inode));
    }
    assert_eq!((files.files.len(), files.left_out().no_room), (MAX_FILES, 1));
    for page in 0..=MAX_HELD as u64 {
        files.held(&held(1, page << 12, page << 12, 1));
    }
    assert_eq!((files.held.len(), files.left_out().no_room), (MAX_HELD, 2));
    for space in 0..=u32::try_from(MAX_READERS).unwrap() {
        files.read(0, 0, 1, Some(space));
    }
    let readers = files.read_ones().next().unwrap().readers.len();
    assert_eq!((readers, files.left_out().no_room), (MAX_READERS, 3));
    files.pieces = MAX_PIECES;
    assert!(files.read(0, 0x1000, 1, None).is_none());
    assert_eq!(files.left_out().no_room, 4);
}
