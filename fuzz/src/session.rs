//! A watch fed with any events over a small catalog, its guest's memory hostile: no panic, an end, bounded memory, and a
//! report that says what a report says.

use std::sync::{Arc, OnceLock};

use arbitrary::Unstructured;
use nephoscope_catalog::{Catalog, ObjectId};
use nephoscope_guest::{
    Attribution, CodeCaptured, CodeCoverage, Coverage, Event, Executed, Gap, GapReason, Gpa, Gva, Lifecycle,
    PageBytes, PageId, Privilege, Root, Stamped,
};
use nephoscope_inventory::{SpaceId, VmReport};
use nephoscope_pipeline::Session;

use crate::catalog::{make, page};

struct Known {
    catalog: Arc<Catalog>,
    /// Pages of catalogued parts, with their link addresses.
    pages: Vec<(PageBytes, u64)>,
}

fn known() -> &'static Known {
    static KNOWN: OnceLock<Known> = OnceLock::new();
    KNOWN.get_or_init(|| {
        let folder = crate::packages::scratch("session");
        let catalog = make(&folder);
        let mut pages = Vec::new();
        let count = catalog.info().expect("a good catalog").objects;
        for object in 0..u32::try_from(count).unwrap_or(0) {
            let parts = catalog
                .object(ObjectId(object))
                .map_or(0, |info| info.parts.len());
            for part in 0..u16::try_from(parts).unwrap_or(0) {
                let part = catalog.part(ObjectId(object), part).expect("a part");
                for (number, bytes) in part.bytes.chunks(4096).enumerate().take(3) {
                    let mut page = PageBytes::zeroed();
                    page[..bytes.len()].copy_from_slice(bytes);
                    pages.push((page, part.link.wrapping_add(4096 * number as u64)));
                }
            }
        }
        pages.push((PageBytes::from_slice(&page(2)).expect("a page"), 0x40_1000));
        pages.push((PageBytes::zeroed(), 0));
        let _ = std::fs::remove_dir_all(folder);
        Known {
            catalog: Arc::new(catalog),
            pages,
        }
    })
}

/// Up to five pages and two dozen other events.
pub fn run(bytes: &[u8]) {
    let known = known();
    let vm = VmReport {
        name: "fuzz".into(),
        ..VmReport::default()
    };
    let mut session = Session::new(vm, known.catalog.clone());
    let mut input = Unstructured::new(bytes);
    let _ = feed(&mut session, known, &mut input);
    session.settle(&mut []);
    let report = session.report();
    assert_eq!(report.findings.len(), session.findings().len());
    for (finding, number) in report.findings.iter().zip(1..) {
        assert_eq!(finding.id, number);
    }
    let counted = report.pages.user.captured + report.pages.kernel.captured + report.pages.firmware.captured;
    assert!(counted <= 5, "no page is counted twice");
}

fn feed(session: &mut Session, known: &Known, input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let mut captures = 0;
    let mut place = 0_u64;
    for _ in 0..24 {
        if input.is_empty() {
            break;
        }
        let kind = input.arbitrary::<u8>()? % 12;
        let event = match kind {
            0..=3 if captures < 5 => {
                captures += 1;
                let captured = capture(known, input)?;
                place = captured.va.0;
                Event::CodeCaptured(Box::new(captured))
            }
            4 => Event::Executed(Executed {
                page: page_id(input)?,
                root: root(input)?,
                vcpu: input.arbitrary::<u8>()?.into(),
                incarnation: input.int_in_range(0..=3)?,
            }),
            5 => Event::Located {
                page: page_id(input)?,
                root: root(input)?,
                va: Gva(input.arbitrary()?),
            },
            6 => {
                let start = input.int_in_range(0..=4095)?;
                Event::Extended {
                    page: page_id(input)?,
                    start,
                    end: input.int_in_range(start + 1..=4096)?,
                }
            }
            7 => Event::Gap(gap(input)?),
            8 => Event::Lifecycle(
                [Lifecycle::Started, Lifecycle::Reset, Lifecycle::Stopped]
                    [usize::from(input.int_in_range(0..=2_u8)?)],
            ),
            9 => Event::Counters(vec![("captures", input.arbitrary()?)]),
            _ => {
                between(session, known, input, place)?;
                continue;
            }
        };
        let at_ns = input.arbitrary::<u32>()?.into();
        let somewhere: u64 = input.arbitrary::<u16>()?.into();
        session.take(
            Stamped { at_ns, event },
            &|frame| Some(Gpa(frame ^ somewhere)),
            &mut [],
        );
    }
    Ok(())
}

/// What the monitor does between events.
fn between(
    session: &mut Session,
    known: &Known,
    input: &mut Unstructured<'_>,
    near: u64,
) -> arbitrary::Result<()> {
    let space = SpaceId(input.int_in_range(0..=4)?);
    match input.arbitrary::<u8>()? % 7 {
        0 => session.settle(&mut []),
        1 => session.ended(space, input.arbitrary::<u32>()?.into(), &mut []),
        2 => {
            let (page, link) = pick(known, input)?;
            session.mapped_by_kernel(
                Gva(if input.arbitrary()? {
                    link
                } else {
                    input.arbitrary()?
                }),
                &page,
            );
        }
        3 => {
            let (page, _) = pick(known, input)?;
            session.mapped(
                space,
                Gva(near.wrapping_add(u64::from(input.arbitrary::<u16>()?) << 12)),
                &page,
            );
        }
        4 => {
            let va = Gva(input.arbitrary()?);
            session.place(space, |unplaced| {
                unplaced.values().map(|page| (*page, va)).collect()
            });
        }
        5 => {
            let _ = session.ambiguous();
        }
        _ => {
            let _ = session.report();
        }
    }
    Ok(())
}

fn page_id(input: &mut Unstructured<'_>) -> arbitrary::Result<PageId> {
    Ok(PageId(input.int_in_range(0..=6)?))
}

fn root(input: &mut Unstructured<'_>) -> arbitrary::Result<Root> {
    Ok(Root(u64::from(input.int_in_range(0..=3_u8)?) << 12))
}

/// A page of the catalog, maybe with some bytes changed.
fn pick(known: &Known, input: &mut Unstructured<'_>) -> arbitrary::Result<(PageBytes, u64)> {
    let which = usize::from(input.arbitrary::<u8>()?) % known.pages.len();
    let (mut page, link) = known.pages[which].clone();
    for _ in 0..input.int_in_range(0..=3_u8)? {
        let at = usize::from(input.arbitrary::<u16>()?) % 4096;
        let len = usize::from(input.int_in_range(1..=16_u8)?).min(4096 - at);
        page[at..at + len].copy_from_slice(input.bytes(len)?);
    }
    // Moved, as firmware is.
    if input.arbitrary::<u8>()? < 24 {
        let by = usize::from(input.arbitrary::<u16>()?) % 4096;
        page.rotate_right(by);
    }
    Ok((page, link))
}

fn capture(known: &Known, input: &mut Unstructured<'_>) -> arbitrary::Result<CodeCaptured> {
    let (bytes, link) = pick(known, input)?;
    let start = input.int_in_range(0..=4095)?;
    let slides = [0, 0x20_0000, 0x1000, 0x5555_0000_0000, 0x0e00_0000];
    let slide = slides[usize::from(input.arbitrary::<u8>()?) % slides.len()];
    let va = if input.arbitrary::<u8>()? < 16 {
        input.arbitrary::<u64>()? & !4095
    } else {
        link.wrapping_add(slide) & !4095
    };
    Ok(CodeCaptured {
        page: page_id(input)?,
        gpa: input
            .arbitrary::<Option<u16>>()?
            .map(|frame| Gpa(u64::from(frame) << 12)),
        frame: u64::from(input.arbitrary::<u8>()?) << 12,
        generation: input.int_in_range(0..=2)?,
        vcpu: 0,
        root: root(input)?,
        va: Gva(va),
        privilege: if input.arbitrary()? {
            Privilege::User
        } else {
            Privilege::Supervisor
        },
        paging: input.arbitrary()?,
        bits: [16, 32, 64][usize::from(input.int_in_range(0..=2_u8)?)],
        start,
        end: input.int_in_range(start + 1..=4096)?,
        replay: input.arbitrary()?,
        bytes,
    })
}

fn gap(input: &mut Unstructured<'_>) -> arbitrary::Result<Gap> {
    let codes = [CodeCoverage::Complete, CodeCoverage::Sampled, CodeCoverage::Blind];
    let attributions = [Attribution::Complete, Attribution::Sampled, Attribution::Blind];
    let reasons = [
        GapReason::Detached,
        GapReason::RingFull,
        GapReason::DriverFault,
        GapReason::MemoryUnreadable,
    ];
    Ok(Gap {
        from_ns: input.arbitrary()?,
        to_ns: input.arbitrary()?,
        left: Coverage {
            code: codes[usize::from(input.int_in_range(0..=2_u8)?)],
            attribution: attributions[usize::from(input.int_in_range(0..=2_u8)?)],
        },
        reason: reasons[usize::from(input.int_in_range(0..=3_u8)?)],
        lost: input.arbitrary()?,
    })
}
