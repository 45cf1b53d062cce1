//! Prepares this process for a program under valgrind.

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Makes the kernel refuse `PR_GET_AUXV` to this thread and to the programs that it starts. Otherwise rustix would read
/// the auxiliary vector and use the vDSO that it names, which valgrind has removed.
pub fn hide_auxiliary_vector() {
    let is_asked = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, 0x4155_5856).unwrap();
    let rules = [(libc::SYS_prctl, vec![SeccompRule::new(vec![is_asked]).unwrap()])].into();
    let refusal = SeccompAction::Errno(libc::EINVAL.unsigned_abs());
    let machine = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refusal, machine).unwrap();
    let filter: BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&filter).unwrap();
}
