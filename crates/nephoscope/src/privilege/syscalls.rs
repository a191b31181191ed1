//! Which system calls are left, by seccomp.
//!
//! Three filters, of which the kernel takes the strictest answer: what only somebody else would want, which ends the process;
//! `clone3`, whose arguments a filter cannot see, as if the kernel did not have it, so that threads are made by `clone`; and
//! what a monitor needs, everything else failing with `EPERM`. That comes last: no filter can be added after it.

use std::collections::BTreeMap;

use anyhow::Context;
use rustix::process::{Pid, getpid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};

use super::InForce;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Calls that say nothing or little by their arguments. Files are Landlock's business.
const ALLOWED: &[i64] = &[
    // Memory, without anything executable: see below.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_membarrier,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    // Signals, and the child's end.
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Time and chance.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    // What is open, and files that Landlock leaves.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_statx,
    libc::SYS_unlinkat,
    libc::SYS_write,
    libc::SYS_writev,
    // Sockets that are there.
    libc::SYS_accept4,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_ppoll,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // Who one is.
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getuid,
    libc::SYS_uname,
];

/// The same under the names that x86-64 has besides.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[i64] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_open,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[i64] = &[];

/// No monitor ever means these.
const DEADLY: &[i64] = &[
    libc::SYS_bpf,
    libc::SYS_delete_module,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// `prctl` for names of threads and of memory.
const PR_SET_VMA: u64 = 0x5356_4d41;
const PR_SET_NAME: u64 = 15;
/// `ioctl` that asks whether a descriptor is a terminal and how wide that is, and that makes sockets wait or not.
const TCGETS: u64 = 0x5401;
const TIOCGWINSZ: u64 = 0x5413;
const FIONBIO: u64 = 0x5421;
const PROT_EXEC: u64 = 4;
const CLONE_THREAD: u64 = 0x1_0000;

/// What a process needs that answers over a connection it has.
const READER: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_futex,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigreturn,
    libc::SYS_sendto,
    libc::SYS_sigaltstack,
    libc::SYS_write,
];

/// Installs the filter of one that reads this process's memory and nothing else; anything else ends it.
///
/// # Errors
/// If it cannot be installed: nothing else would keep that one from other processes.
pub(super) fn filter_reader(process: Pid, in_force: &mut InForce) -> anyhow::Result<()> {
    let rules = reader(process)?;
    let count = rules.len();
    let filter = compile(rules, SeccompAction::KillProcess, SeccompAction::Allow)?;
    apply_filter_all_threads(&filter).context("installing a filter")?;
    in_force.holds("seccomp", format!("{count} system calls left"));
    Ok(())
}

fn reader(process: Pid) -> anyhow::Result<Rules> {
    let mut rules = plain(READER);
    let is = |argument, operator, value| -> anyhow::Result<Vec<SeccompRule>> {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
        Ok(vec![SeccompRule::new(vec![condition])?])
    };
    let number = u64::from(process.as_raw_nonzero().get().unsigned_abs());
    rules.insert(libc::SYS_process_vm_readv, is(0, SeccompCmpOp::Eq, number)?);
    rules.insert(libc::SYS_mmap, is(2, SeccompCmpOp::MaskedEq(PROT_EXEC), 0)?);
    Ok(rules)
}

/// Installs the filters, in all threads.
pub(super) fn filter(in_force: &mut InForce) {
    match try_filter() {
        Ok(count) => in_force.holds("seccomp", format!("{count} system calls left")),
        Err(error) => in_force.lacks("seccomp", format!("{error:#}")),
    }
}

fn try_filter() -> anyhow::Result<usize> {
    let allowed = allowed()?;
    let count = allowed.len();
    let perm = SeccompAction::Errno(code(libc::EPERM));
    let filters = [
        compile(plain(DEADLY), SeccompAction::Allow, SeccompAction::KillProcess)?,
        compile(
            plain(&[libc::SYS_clone3]),
            SeccompAction::Allow,
            SeccompAction::Errno(code(libc::ENOSYS)),
        )?,
        compile(allowed, perm, SeccompAction::Allow)?,
    ];
    for filter in &filters {
        apply_filter_all_threads(filter).context("installing a filter")?;
    }
    Ok(count)
}

fn code(errno: i32) -> u32 {
    errno.unsigned_abs()
}

fn compile(rules: Rules, otherwise: SeccompAction, action: SeccompAction) -> anyhow::Result<BpfProgram> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).context("no filters for this processor")?;
    let filter = SeccompFilter::new(rules, otherwise, action, arch)?;
    Ok(filter.try_into()?)
}

fn plain(calls: &[i64]) -> Rules {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

fn allowed() -> anyhow::Result<Rules> {
    let mut rules = plain(ALLOWED);
    rules.extend(plain(ALLOWED_HERE));
    // The other filter answers it.
    rules.extend(plain(&[libc::SYS_clone3]));
    // `argument` is one of these values, under this mask.
    let mut only = |call: i64, argument: u8, mask: u64, values: &[u64]| -> anyhow::Result<()> {
        let mut any = Vec::new();
        for value in values {
            let operator = SeccompCmpOp::MaskedEq(mask);
            let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, *value)?;
            any.push(SeccompRule::new(vec![condition])?);
        }
        rules.insert(call, any);
        Ok(())
    };
    const ALL: u64 = u32::MAX as u64;
    only(libc::SYS_mmap, 2, PROT_EXEC, &[0])?;
    only(libc::SYS_mprotect, 2, PROT_EXEC, &[0])?;
    only(libc::SYS_clone, 0, CLONE_THREAD, &[CLONE_THREAD])?;
    only(libc::SYS_prctl, 0, ALL, &[PR_SET_NAME, PR_SET_VMA])?;
    let mut ioctls = vec![TCGETS, TIOCGWINSZ, FIONBIO];
    ioctls.extend(nephoscope_drivers::KVM_TRAP_IOCTLS.map(u64::from));
    only(libc::SYS_ioctl, 1, ALL, &ioctls)?;
    // `prlimit64` reads limits, where its third argument is no address.
    only(libc::SYS_prlimit64, 2, ALL, &[0])?;
    let own = u64::from(getpid().as_raw_nonzero().get().unsigned_abs());
    only(libc::SYS_tgkill, 0, ALL, &[own])?;
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_a_process_opens_nothing_and_reads_no_other() {
        let rules = reader(getpid()).unwrap();
        for call in [
            libc::SYS_openat,
            libc::SYS_socket,
            libc::SYS_process_vm_writev,
            libc::SYS_ptrace,
        ] {
            assert!(!rules.contains_key(&call), "{call}");
        }
        assert_eq!(rules[&libc::SYS_process_vm_readv].len(), 1);
        assert!(
            !compile(rules, SeccompAction::KillProcess, SeccompAction::Allow)
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn the_filters_are_programs_that_a_kernel_takes_and_no_call_is_both_needed_and_deadly() {
        let rules = allowed().unwrap();
        for call in DEADLY {
            assert!(!rules.contains_key(call), "{call}");
        }
        assert!(!rules.contains_key(&libc::SYS_socket) && !rules.contains_key(&libc::SYS_seccomp));
        let perm = SeccompAction::Errno(code(libc::EPERM));
        assert!(!compile(rules, perm, SeccompAction::Allow).unwrap().is_empty());
    }
}
