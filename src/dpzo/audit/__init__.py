"""Audits: empirical lower bounds on ε, to compare with the claimed upper bound."""

from dpzo.audit.attacks import Attack, attacks
from dpzo.audit.mechanism import audit_mechanism
from dpzo.audit.report import AuditReport, joint

__all__ = ["Attack", "AuditReport", "attacks", "audit_mechanism", "joint"]
