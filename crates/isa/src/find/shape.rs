//! What tables lead to.

use crate::step::Permissions;

/// What lies below a table, its own place in the tree not counted: the rights that leaves have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Shape {
    /// One bit for each combination of rights.
    pub(super) leaves: u16,
    /// An entry with a reserved bit, or a table that cannot be read.
    pub(super) broken: bool,
    /// Nothing more was looked at because of that.
    pub(super) partial: bool,
}

const USER: u8 = 1;
const EXECUTE: u8 = 2;

const fn rights(permissions: Permissions) -> u8 {
    (if permissions.user { USER } else { 0 })
        | (if permissions.execute_supervisor {
            EXECUTE
        } else {
            0
        })
}

impl Shape {
    pub(super) fn leaf(&mut self, permissions: Permissions) {
        self.leaves |= 1 << rights(permissions);
    }

    /// What lies below an entry that leaves these rights.
    pub(super) fn below(&mut self, shape: Self, permissions: Permissions) {
        for combination in 0..4_u8 {
            if shape.leaves >> combination & 1 != 0 {
                self.leaves |= 1 << (combination & rights(permissions));
            }
        }
        self.broken |= shape.broken;
        self.partial |= shape.partial;
    }

    pub(super) const fn has_user_memory(self) -> bool {
        self.leaves & (1 << USER | 1 << (USER | EXECUTE)) != 0
    }

    /// Memory that the supervisor may execute, and user code may not reach.
    pub(super) const fn has_kernel_code(self) -> bool {
        self.leaves & (1 << EXECUTE) != 0
    }
}
