/*
 * Transactions of two branches over two regions, one after the other the owner of their slot, and a network that loses, repeats
 * and reorders. Package spec says which properties are checked, in which of the three worlds, and which broken rules are found.
 *
 *   GLOBAL    the decision is a first-write-wins record in the arbiter, written only while the slot's epoch holds
 *   REGIONAL  the decision is the first owner's own record; after its loss the new owner goes by positive evidence, by the old
 *             region's return, or by an operator's word, and fences both participants first
 *   FAR       as REGIONAL, and participant 1 is in the region that was lost: nobody fences it, nobody can ask it, and the new
 *             owner does not know of its branch; there is no operator's word
 *
 * A transaction moves one unit from an account at participant 0 to one at participant 1. With TXS=2 both draw on the same unit.
 * With ALONE no region is lost.
 *
 * Rules that can be broken: NO_BARRIER NO_TOMBSTONE EARLY NO_EPOCH NO_FENCE CANCEL_TRIED NO_HOLD STALE_STATE.
 */

#ifndef TXS
#define TXS 1
#endif

#define TRY 0
#define CONFIRM 1
#define CANCEL 2

#define NONE 0
#define COMMIT 1
#define ABORT 2

/* What was answered to a call. */
#define SILENT 0
#define DONE 1
#define REFUSED 2
#define STALE 3

/* A call by transaction, participant, operation and the epoch of who makes it (0 is the first owner's, 1 the second's). What was
 * sent once may arrive at any later time and any number of times, or never. */
#define CALL(t, p, op, e) ((((t) * 2 + (p)) * 3 + (op)) * 2 + (e))

bool sent[TXS * 12];
byte answer[TXS * 12];

byte owner;                /* whose epoch the arbiter has */
bool lost;                 /* the first owner is given up */
bool dead;                 /* and is really dead; else it goes on behind a partition */
bool back;                 /* and has handed over what it has */
byte decision[TXS];        /* GLOBAL: in the arbiter; else the first owner's record */

/* Participants: barrier rows by transaction and participant, fences by participant. */
bool tried[TXS * 2], confirmed[TXS * 2], cancelled[TXS * 2], tombstone[TXS * 2];
byte fence[2];
byte trials[TXS * 2], confirms[TXS * 2], cancels[TXS * 2]; /* how often the business ran */

/* The accounts: of participant 0 what is there and what is held, of participant 1 what is pending and what is there. */
byte available = 1, frozen, pending, received;
byte gone;                 /* left account 0, for transactions that are confirmed there */

bool ended[TXS];

#define AT(t, p) ((t) * 2 + (p))

inline take_try(t, p, a) {
	if
	:: tombstone[AT(t, p)] -> a = REFUSED
	:: !tombstone[AT(t, p)] && (tried[AT(t, p)] || cancelled[AT(t, p)]) -> a = DONE
	:: else ->
		if
		:: p == 0 && available == 0 -> a = REFUSED
		:: else ->
			tried[AT(t, p)] = true;
			trials[AT(t, p)]++;
			a = DONE;
			if
			:: p == 0 ->
#ifndef NO_HOLD
				available--;
#endif
				frozen++
			:: else -> pending++
			fi
		fi
	fi
}

inline take_confirm(t, p, a) {
	if
	:: cancelled[AT(t, p)] || tombstone[AT(t, p)] -> a = REFUSED
	:: !cancelled[AT(t, p)] && !tombstone[AT(t, p)] && !tried[AT(t, p)] -> a = REFUSED; assert(false) /* nobody confirms what was not tried */
#ifndef NO_BARRIER
	:: !cancelled[AT(t, p)] && !tombstone[AT(t, p)] && tried[AT(t, p)] && confirmed[AT(t, p)] -> a = DONE
#endif
	:: else ->
		confirmed[AT(t, p)] = true;
		confirms[AT(t, p)]++;
		assert(confirms[AT(t, p)] == 1);
		a = DONE;
		if
		:: p == 0 -> frozen--; gone++
#ifdef NO_HOLD
			; assert(available > 0); available--
#endif
		:: else -> pending--; received++
		fi
	fi
}

inline take_cancel(t, p, a) {
	if
	:: confirmed[AT(t, p)] -> a = REFUSED
	:: !confirmed[AT(t, p)] && (cancelled[AT(t, p)] || tombstone[AT(t, p)]) -> a = DONE
	:: !confirmed[AT(t, p)] && !cancelled[AT(t, p)] && !tombstone[AT(t, p)] && !tried[AT(t, p)] ->
#ifndef NO_TOMBSTONE
		tombstone[AT(t, p)] = true;
#endif
		a = DONE
	:: else ->
		cancelled[AT(t, p)] = true;
		cancels[AT(t, p)]++;
		a = DONE;
		if
		:: p == 0 ->
			frozen--
#ifndef NO_HOLD
			; available++
#endif
		:: else -> pending--
		fi
	fi
}

/* One process for each call: so that a call that is repeated for ever keeps no other one away. */
proctype Network(byte t; byte p; byte op; byte e) {
	byte a;
end:	do
	:: sent[CALL(t, p, op, e)] ->
		d_step {
			a = SILENT;
			if
#ifndef NO_FENCE
			:: e < fence[p] -> a = STALE
#endif
			:: else ->
				if
				:: fence[p] < e -> fence[p] = e
				:: else
				fi;
				if
				:: op == TRY -> take_try(t, p, a)
				:: op == CONFIRM -> take_confirm(t, p, a)
				:: op == CANCEL -> take_cancel(t, p, a)
				fi
			fi;
			/* An earlier answer is as good: it may be heard late, or never. */
			answer[CALL(t, p, op, e)] = a;
			a = SILENT
		}
	od
}

inline both(t, op, e) {
	d_step { sent[CALL(t, 0, op, e)] = true; sent[CALL(t, 1, op, e)] = true }
}

#define HEARD(t, op, e) (answer[CALL(t, 0, op, e)] == DONE && answer[CALL(t, 1, op, e)] == DONE)
#define TOO_LATE(t, e) (answer[CALL(t, 0, CONFIRM, e)] == STALE || answer[CALL(t, 1, CONFIRM, e)] == STALE || answer[CALL(t, 0, CANCEL, e)] == STALE || answer[CALL(t, 1, CANCEL, e)] == STALE || answer[CALL(t, 0, TRY, e)] == STALE || answer[CALL(t, 1, TRY, e)] == STALE)

/* The first owner's write of a decision. Its answer may be lost: then it does not know, and asks again. Where all is to end, not
 * for ever. */
inline decide(t, v, d) {
	d_step {
#ifdef GLOBAL
		if
#ifdef NO_EPOCH
		:: decision[t] == NONE -> decision[t] = v
#else
		:: decision[t] == NONE && owner == 0 -> decision[t] = v
#endif
		:: else
		fi;
#else
		if
		:: decision[t] == NONE && !back -> decision[t] = v
		:: else
		fi;
#endif
		d = decision[t]
	}
	if
	:: true                                   /* the answer came */
#ifdef LIVE
	:: !unsure -> unsure = true; d = NONE     /* or not */
#else
	:: d = NONE
#endif
	fi
}

proctype First(byte t) {
	byte d = NONE;
#ifdef LIVE
	bool unsure = false;
#endif
	both(t, TRY, 0);
	do
	:: d == NONE && !dead && !back && HEARD(t, TRY, 0) ->
#ifdef EARLY
		both(t, CONFIRM, 0);
#endif
		decide(t, COMMIT, d)
	:: d == NONE && !dead && !back -> decide(t, ABORT, d)            /* the time is up, or a try was refused */
	:: d == NONE && lost && decision[t] == NONE -> break             /* it is told that the slot is another's */
	:: d == COMMIT && !dead && !back -> both(t, CONFIRM, 0); (HEARD(t, CONFIRM, 0) || TOO_LATE(t, 0) || dead || back); break
	:: d == ABORT && !dead && !back -> both(t, CANCEL, 0); (HEARD(t, CANCEL, 0) || TOO_LATE(t, 0) || dead || back); break
	:: dead || back -> break
	od;
	if
	:: (d == COMMIT && HEARD(t, CONFIRM, 0)) || (d == ABORT && HEARD(t, CANCEL, 0)) -> ended[t] = true
	:: else
	fi
}

/* The first owner may be given up at any time, dead or not; with a return, it hands over what it has and does nothing more. */
proctype Loss() {
	if
	:: d_step { owner = 1; lost = true; dead = true }
	:: d_step { owner = 1; lost = true }
	:: goto stays
	fi;
#ifndef GLOBAL
	d_step { back = true }
#endif
stays:	skip
}

#define PROVEN(t, q) (confirmed[AT(t, q)])

proctype Second(byte t) {
	byte d = NONE;
	if
	:: lost
	:: ended[t] -> goto over         /* nobody was lost, and it has ended */
	fi;
#ifdef GLOBAL
#ifdef NO_EPOCH
	d = decision[t];                 /* absence is taken for an abort, and nothing is written */
	if
	:: d == NONE -> d = ABORT
	:: else
	fi;
#else
#ifdef STALE_STATE
	d = ABORT;                       /* it does not look */
#else
	d_step {
		if
		:: decision[t] == NONE -> decision[t] = ABORT
		:: else
		fi;
		d = decision[t]
	};
#endif
#endif
#else
	/* First the fences of the participants that are there, then what they have. */
	d_step { if :: fence[0] < 1 -> fence[0] = 1 :: else fi }
#ifndef FAR
	d_step { if :: fence[1] < 1 -> fence[1] = 1 :: else fi }
#endif
	if
	:: PROVEN(t, 0) -> d = COMMIT
#ifndef FAR
	:: PROVEN(t, 1) -> d = COMMIT
	:: !PROVEN(t, 0) && !PROVEN(t, 1) ->
#else
	:: !PROVEN(t, 0) ->
#endif
#ifdef CANCEL_TRIED
		d = ABORT
#else
		/* In doubt: until the old region has returned, a branch proves it, or an operator says so. */
		if
		:: back -> d = (decision[t] == COMMIT -> COMMIT : ABORT)
		:: PROVEN(t, 0) -> d = COMMIT
#ifndef FAR
		:: PROVEN(t, 1) -> d = COMMIT
		:: d = ABORT
#endif
		fi
#endif
	fi;
#endif
	if
	:: d == COMMIT -> both(t, CONFIRM, 1); HEARD(t, CONFIRM, 1)
	:: else -> both(t, CANCEL, 1); HEARD(t, CANCEL, 1)
	fi;
	ended[t] = true;
over:	skip
}

init {
	byte t, p, op;
	atomic {
		t = 0;
		do
		:: t < TXS ->
			p = 0;
			do
			:: p < 2 ->
				op = 0;
				do
				:: op < 3 ->
					run Network(t, p, op, 0);
#ifndef ALONE
					run Network(t, p, op, 1);
#endif
					op++
				:: else -> break
				od;
				p++
			:: else -> break
			od;
			run First(t);
#ifndef ALONE
			run Second(t);
#endif
			t++
		:: else -> break
		od;
#ifndef ALONE
		run Loss();
#endif
		t = 0; p = 0; op = 0
	}
}

/* No transaction is confirmed at one participant and cancelled at the other: G5, and what G2 and G4 are for. */
#define TORN(t) ((confirmed[AT(t, 0)] && (cancelled[AT(t, 1)] || tombstone[AT(t, 1)])) || (confirmed[AT(t, 1)] && (cancelled[AT(t, 0)] || tombstone[AT(t, 0)])))
#define TWICE(t) (trials[AT(t, 0)] > 1 || trials[AT(t, 1)] > 1 || cancels[AT(t, 0)] > 1 || cancels[AT(t, 1)] > 1)
/* When a transaction has ended, all of it has: nothing is held for it, now or by what is on its way. */
#define OPEN(t, q) (tried[AT(t, q)] && !confirmed[AT(t, q)] && !cancelled[AT(t, q)])
#define LEFT(t) (ended[t] && (OPEN(t, 0) || OPEN(t, 1)))

#if TXS == 1
#define SOUND (!TORN(0) && !TWICE(0) && !LEFT(0))
#define OVER (ended[0])
#else
#define SOUND (!TORN(0) && !TWICE(0) && !LEFT(0) && !TORN(1) && !TWICE(1) && !LEFT(1))
#define OVER (ended[0] && ended[1])
#endif
/* The unit is somewhere, and in one place: there, held, or gone. */
#define WHOLE (available + frozen + gone == 1)
#define EVEN (!OVER || (received == gone && frozen == 0 && pending == 0))

#ifdef LIVE
ltl ends { <> OVER }
#else
ltl holds { [] (SOUND && WHOLE && EVEN) }
#endif
