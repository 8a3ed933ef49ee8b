//! Lives of small fleets of sequences, told line by line. The language is in `scenario.rs`.

use super::scenario::play;

#[test]
fn a_prompt_is_computed_in_chunks_and_then_decoded_token_by_token() {
    play(
        "pool blocks=8 size=16 budget=32
        add a prompt=a:70 max=3
        step -> +a[0..32]
        step -> a[32..64]
        seq a computed=64 tokens=70 blocks=5
        step -> a[64..70]*
        seq a computed=70 tokens=71
        step -> a[70..71]*
        step -> a[71..72]$
        step ->
        blocks used=0 free=8",
    );
}

#[test]
fn decodes_come_first_and_prefills_fill_the_rest_of_the_step() {
    play(
        "pool blocks=32 size=4 budget=8
        add a prompt=a:3 max=9
        add b prompt=b:4 max=9
        step -> +a[0..3]* +b[0..4]*
        add c prompt=c:13 max=2
        step -> a[3..4]* b[4..5]* +c[0..6]
        step -> a[4..5]* b[5..6]* c[6..12]
        # one token of a prompt is as cheap as a decode, and stands in its sequence's place
        step -> a[5..6]* b[6..7]* c[12..13]*
        step -> a[6..7]* b[7..8]* c[13..14]$",
    );
}

#[test]
fn prompts_share_steps_in_the_order_they_came() {
    play(
        "pool blocks=32 size=4 budget=10
        add a prompt=a:14 max=2
        add b prompt=b:3 max=2
        add c prompt=c:9 max=2
        step -> +a[0..10]
        step -> a[10..14]* +b[0..3]* +c[0..3]
        step -> a[14..15]$ b[3..4]$ c[3..9]*
        step -> c[9..10]$",
    );
}

#[test]
fn an_urgent_class_goes_first_and_within_a_class_the_first_to_come() {
    play(
        "pool blocks=32 size=4 budget=4
        add a prompt=a:4 prio=2 max=2
        add b prompt=b:4 prio=1 max=2
        add c prompt=c:4 prio=2 max=2
        add d prompt=d:4 prio=1 max=2
        step -> +b[0..4]*
        step -> b[4..5]$ +d[0..3]
        step -> d[3..4]* +a[0..3]
        step -> d[4..5]$ a[3..4]* +c[0..2]
        step -> a[4..5]$ c[2..4]*
        step -> c[4..5]$",
    );
}

#[test]
fn a_prompt_cut_short_of_one_token_goes_on_before_later_prompts() {
    play(
        "pool blocks=16 size=4 budget=4
        add a prompt=a:5 max=2
        add b prompt=b:4 max=2
        step -> +a[0..4]
        step -> a[4..5]* +b[0..3]
        step -> a[5..6]$ b[3..4]*",
    );
}

#[test]
fn what_cannot_be_served_is_refused_at_once() {
    play(
        "pool blocks=4 size=4 waiting=2
        add a prompt=a:16 max=1 -> never fits
        add a prompt=a:15 max=1
        add a prompt=a:3 max=1 -> duplicate
        add b prompt=b:0 max=5 -> empty
        add b prompt=b:1 max=15
        add c prompt=c:1 max=1 -> full
        step -> +a[0..15]$
        add c prompt=c:1 max=1",
    );
}

#[test]
fn no_more_run_than_are_allowed_or_than_a_step_has_tokens() {
    play(
        "pool blocks=32 size=4 running=2
        add a prompt=a:2 max=2
        add b prompt=b:2 max=2
        add c prompt=c:2 max=2
        step -> +a[0..2]* +b[0..2]*
        step -> a[2..3]$ b[2..3]$
        step -> +c[0..2]*",
    );
    play(
        "pool blocks=32 size=4 running=9 budget=2
        add a prompt=a:1 max=3
        add b prompt=b:1 max=3
        add c prompt=c:1 max=3
        step -> +a[0..1]* +b[0..1]*
        step -> a[1..2]* b[1..2]*
        step -> a[2..3]$ b[2..3]$
        step -> +c[0..1]*",
    );
}

#[test]
fn the_last_to_come_gives_its_blocks_to_a_decode_and_returns_before_the_others() {
    play(
        "pool blocks=5 size=4 cache=off
        add a prompt=a:7 max=6
        add b prompt=b:7 max=6
        step -> +a[0..7]* +b[0..7]*
        add c prompt=c:4 max=1
        step -> a[7..8]* b[7..8]*
        step -> -b a[8..9]*
        # b asks for three blocks and one to spare for a, which still grows
        step -> a[9..10]*
        step -> a[10..11]*
        step -> a[11..12]$
        # all that b said is computed anew, and c still waits behind it
        step -> +b[0..9]* +c[0..4]$
        step -> b[9..10]*
        step -> b[10..11]*
        step -> b[11..12]$",
    );
}

#[test]
fn the_least_urgent_class_gives_way_first_even_if_it_came_first() {
    play(
        "pool blocks=5 size=4 cache=off
        add low prompt=l:7 max=6 prio=9
        add high prompt=h:7 max=6 prio=3
        step -> +high[0..7]* +low[0..7]*
        step -> high[7..8]* low[7..8]*
        step -> -low high[8..9]*",
    );
}

#[test]
fn a_sequence_that_needs_a_block_may_be_the_one_that_gives_way() {
    play(
        "pool blocks=4 size=4 cache=off
        add a prompt=a:5 max=8
        add b prompt=b:7 max=6
        step -> +a[0..5]*
        steps 1
        # b does not fit beside a, which still needs room
        blocks used=2
        drain",
    );
    play(
        "pool blocks=5 size=4 cache=off
        add a prompt=a:5 max=4
        add b prompt=b:8 max=6
        step -> +a[0..5]* +b[0..8]*
        step -> a[5..6]* b[8..9]*
        step -> a[6..7]* b[9..10]*
        step -> a[7..8]$ b[10..11]*
        drain -> 1",
    );
    play(
        "pool blocks=5 size=4 cache=off
        add a prompt=a:6 max=8
        add b prompt=b:7 max=6
        step -> +a[0..6]* +b[0..7]*
        step -> a[6..7]* b[7..8]*
        # the fifth block goes to b; when a asks next, b gives way
        step -> a[7..8]* b[8..9]*
        step -> -b a[8..9]*
        drain -> 2",
    );
    play(
        "pool blocks=5 size=4 cache=off
        add a prompt=a:7 max=6
        add b prompt=b:6 max=6
        step -> +a[0..7]* +b[0..6]*
        step -> a[7..8]* b[6..7]*
        step -> a[8..9]* b[7..8]*
        step -> -b a[9..10]*
        drain -> 2",
    );
}

#[test]
fn a_preempted_sequence_finds_in_the_cache_what_nobody_took() {
    play(
        "pool blocks=6 size=4
        add a prompt=a:7 max=6
        add b prompt=b:11 max=6
        step -> +a[0..7]* +b[0..11]*
        step -> a[7..8]* b[11..12]*
        step -> -b a[8..9]*
        steps 2
        step -> a[11..12]$
        # three blocks of b are as they were
        step -> +b[12..13]*
        seq b cached=0 computed=13 blocks=4
        drain -> 1",
    );
}

#[test]
fn one_that_does_not_fit_holds_back_those_behind_it() {
    play(
        "pool blocks=6 size=4
        add a prompt=a:8 max=8
        step -> +a[0..8]*
        add b prompt=b:16 max=2
        add c prompt=c:2 max=2
        step -> a[8..9]*
        add d prompt=d:2 max=2 prio=1
        # another class does not wait for it
        step -> a[9..10]* +d[0..2]*
        step -> d[2..3]$ a[10..11]*
        steps 3
        step -> a[14..15]$
        step -> +b[0..16]* +c[0..2]*",
    );
}

#[test]
fn a_cancelled_sequence_frees_its_blocks_wherever_it_is() {
    play(
        "pool blocks=8 size=4 budget=8 cache=off
        add a prompt=a:12 max=4
        add b prompt=b:4 max=4
        step -> +a[0..8]
        cancel b -> 1
        blocks used=3
        cancel a -> 1
        blocks used=0 free=8
        step ->
        add c prompt=c:5 max=4
        plan -> +c[0..5]*
        cancel c -> 1
        blocks used=0
        add d prompt=d:5 max=2
        plan -> +d[0..5]*
        commit -> 0
        commit -> 0
        step -> d[5..6]$",
    );
}

#[test]
fn a_sequence_being_computed_is_left_alone() {
    play(
        "pool blocks=5 size=4 budget=32 cache=off
        add a prompt=a:7 max=6
        add b prompt=b:7 max=6
        step -> +a[0..7]* +b[0..7]*
        step -> a[7..8]* b[7..8]*
        plan -> -b a[8..9]*
        plan ->
        commit -> 0
        plan -> a[9..10]*
        commit -> 0
        drain -> 2",
    );
}

#[test]
fn a_prefix_is_found_in_whole_blocks() {
    play(
        "pool blocks=16 size=4
        add a prompt=sys:10+a:3 max=1
        step -> +a[0..13]$
        blocks used=0 cached=3 lookups=1 hits=0 saved=0
        add b prompt=sys:10+b:9 max=1
        # ten tokens are alike, which is two whole blocks
        step -> +b[8..19]$
        blocks cached=5 lookups=2 hits=1 saved=8",
    );
}

#[test]
fn the_last_token_is_always_computed() {
    play(
        "pool blocks=16 size=4
        add a prompt=t:8 max=1
        step -> +a[0..8]$
        blocks cached=2
        add b prompt=t:8 max=3
        step -> +b[4..8]*
        seq b cached=4 blocks=2
        # nine tokens leave one to compute behind two cached blocks
        add c prompt=t:9 max=3
        step -> b[8..9]* +c[8..9]*
        seq c cached=8",
    );
}

#[test]
fn twins_in_one_step_keep_their_own_copies_and_a_third_shares_the_first() {
    play(
        "pool blocks=16 size=4
        add a prompt=t:9 max=4
        add b prompt=t:9 max=4
        step -> +a[0..9]* +b[0..9]*
        blocks used=6 cached=2
        add c prompt=t:9 max=4
        step -> a[9..10]* b[9..10]* +c[8..9]*
        blocks used=7 cached=2
        cancel a
        # c still holds the blocks it shares
        blocks used=6 free=10 cached=2
        add d prompt=t:8+d:1 max=1
        step -> b[10..11]* c[9..10]* +d[8..9]$",
    );
}

#[test]
fn the_next_turn_of_a_chat_finds_the_answer_of_the_last() {
    play(
        "pool blocks=16 size=4
        add a prompt=a:6 max=7
        drain -> 1
        # thirteen tokens, of which the last was never computed: three whole blocks
        blocks cached=3
        add b prompt=@a+b:5 max=1
        step -> +b[12..18]$
        blocks saved=12",
    );
}

#[test]
fn nothing_is_found_when_the_cache_is_off() {
    play(
        "pool blocks=16 size=4 cache=off
        add a prompt=t:9 max=1
        step -> +a[0..9]$
        add b prompt=t:9 max=1
        step -> +b[0..9]$
        blocks cached=0 hits=0 saved=0 lookups=2",
    );
}

#[test]
fn salts_keep_tenants_apart() {
    play(
        "pool blocks=16 size=4
        add a prompt=t:9 max=1 salt=1
        step -> +a[0..9]$
        add b prompt=t:9 max=1 salt=2
        step -> +b[0..9]$
        add c prompt=t:9 max=1 salt=1
        step -> +c[8..9]$",
    );
}

#[test]
fn pictures_are_told_apart_by_content_and_place() {
    play(
        "pool blocks=32 size=4
        add a prompt=t:20 image=6+4:77 max=1
        step -> +a[0..20]$
        # another picture: only the block before it is the same
        add b prompt=t:20 image=6+4:78 max=1
        step -> +b[4..20]$
        # the same picture one token later
        add c prompt=t:20 image=7+4:77 max=1
        step -> +c[4..20]$
        # the same picture, but longer
        add d prompt=t:20 image=6+9:77 max=1
        step -> +d[4..20]$
        add e prompt=t:20 image=6+4:77 max=1
        step -> +e[16..20]$
        # no picture at all
        add f prompt=t:20 max=1
        step -> +f[4..20]$",
    );
}

#[test]
fn chunks_may_end_inside_a_picture() {
    play(
        "pool blocks=32 size=4 budget=5
        add a prompt=t:12 image=3+7:5 max=2
        step -> +a[0..5]
        step -> a[5..10]
        step -> a[10..12]*
        step -> a[12..13]$
        add b prompt=t:12 image=3+7:5 max=1
        step -> +b[8..12]$",
    );
}

#[test]
fn blank_blocks_are_reused_first_then_the_least_recently_used_tail_first() {
    play(
        "pool blocks=8 size=4
        add a prompt=a:13 max=1
        step -> +a[0..13]$
        add b prompt=b:13 max=1
        step -> +b[0..13]$
        # two blocks were never full, six are cached
        blocks free=8 cached=6 evictions=0
        add c prompt=c:7 max=1
        step -> +c[0..7]$
        blocks cached=7 evictions=0
        # one blank block is left, so this takes the tails of a
        add d prompt=d:11 max=1
        step -> +d[0..11]$
        blocks evictions=2 cached=7
        add e prompt=a:5 max=1
        step -> +e[4..5]$
        add f prompt=a:9 max=1
        step -> +f[4..9]$",
    );
}

#[test]
fn what_is_used_again_is_kept_longer() {
    play(
        "pool blocks=4 size=4
        add a prompt=a:5 max=1
        step -> +a[0..5]$
        add b prompt=b:5 max=1
        step -> +b[0..5]$
        add c prompt=a:5 max=1
        step -> +c[4..5]$
        # two blank blocks, then b's, which is older now than a's
        add d prompt=d:9 max=1
        step -> +d[0..9]$
        blocks evictions=1
        add e prompt=a:5 max=1
        step -> +e[4..5]$",
    );
}

#[test]
fn a_newcomer_leaves_a_block_to_each_that_still_grows() {
    play(
        "pool blocks=4 size=4 cache=off
        add a prompt=a:4 max=5
        add b prompt=b:4 max=5
        add c prompt=c:4 max=1
        # b would need one, and a one later, and b one later: four with a's; c would be one too many
        step -> +a[0..4]* +b[0..4]*
        step -> a[4..5]* b[4..5]*
        steps 2
        step -> a[7..8]$ b[7..8]$
        step -> +c[0..4]$",
    );
}

#[test]
fn ahead_of_a_token_that_is_still_being_drawn() {
    play(
        "pool blocks=8 size=4 budget=8 ahead=on
        add a prompt=a:10 max=4
        plan -> +a[0..8]
        # a prompt goes on, too, and then the token behind it
        plan -> a[8..10]*
        plan ->
        commit -> 0
        plan -> a[10..11]?*
        commit -> 0
        seq a computed=10 tokens=11
        plan -> a[11..12]?*
        commit -> 0
        # thirteen tokens are known or on their way, and the fourteenth would be the last
        plan -> a[12..13]?*
        commit -> 0
        # it is: there is nothing to go on from
        plan ->
        commit -> 1
        blocks used=0",
    );
}

#[test]
fn newcomers_join_those_that_are_ahead() {
    play(
        "pool blocks=16 size=4 ahead=on
        add a prompt=a:3 max=9
        plan -> +a[0..3]*
        add b prompt=b:5 max=9
        plan -> a[3..4]?* +b[0..5]*
        commit -> 0
        plan -> a[4..5]?* b[5..6]?*
        commit -> 0
        plan -> a[5..6]?* b[6..7]?*
        drain -> 2",
    );
}

#[test]
fn a_block_that_a_pending_token_fills_is_found_once_it_is_committed() {
    play(
        "pool blocks=16 size=4 ahead=on
        add a prompt=a:3 max=3
        plan -> +a[0..3]*
        plan -> a[3..4]?*
        blocks cached=0
        commit -> 0
        plan -> a[4..5]?*
        blocks cached=0
        commit -> 0
        blocks cached=1
        commit -> 1
        add b prompt=@a+b:1 max=1
        step -> +b[4..7]$",
    );
}

#[test]
fn what_ends_while_its_next_chunk_is_under_way_frees_its_blocks_at_once() {
    play(
        "pool blocks=4 size=4 cache=off ahead=on
        add a prompt=a:7 max=8
        add b prompt=b:3 max=2
        plan -> +a[0..7]* +b[0..3]*
        plan -> a[7..8]?* b[3..4]?*
        cancel a -> 1
        blocks used=1
        add c prompt=c:8 max=1
        # its blocks are in new hands; the device writes the old tokens first, then the new ones
        commit -> 0
        plan -> +c[0..8]*
        commit -> 1
        commit -> 1
        blocks used=0",
    );
}

#[test]
fn blocks_are_taken_from_the_last_once_it_is_not_being_computed() {
    play(
        "pool blocks=5 size=4 cache=off ahead=on
        add a prompt=a:7 max=6
        add b prompt=b:7 max=6
        plan -> +a[0..7]* +b[0..7]*
        plan -> a[7..8]?* b[7..8]?*
        commit -> 0
        # one block is left, and a is first; b waits
        plan -> a[8..9]?*
        commit -> 0
        # b, the last, finds none; now that it is not being computed it gives way
        plan -> -b a[9..10]?*
        drain -> 2",
    );
    play(
        "pool blocks=5 size=4 cache=off ahead=on
        add a prompt=a:8 max=6
        add b prompt=b:6 max=6
        plan -> +a[0..8]* +b[0..6]*
        plan -> a[8..9]?* b[6..7]?*
        commit -> 0
        plan -> a[9..10]?* b[7..8]?*
        commit -> 0
        # b finds no block and is the last, so it waits to give way
        plan -> a[10..11]?*
        commit -> 0
        plan -> -b a[11..12]?*
        drain -> 2",
    );
    play(
        "pool blocks=5 size=4 cache=off ahead=on
        add a prompt=a:6 max=8
        add b prompt=b:8 max=6
        plan -> +a[0..6]* +b[0..8]*
        plan -> a[6..7]?* b[8..9]?*
        commit -> 0
        plan -> a[7..8]?* b[9..10]?*
        commit -> 0
        # a finds no block; b, the last, is held back to give way, and nothing is planned
        plan ->
        commit -> 0
        plan -> -b a[8..9]*
        drain -> 2",
    );
}

#[test]
fn draws_that_need_history_wait_for_their_commit_together_and_others_go_on() {
    play(
        "pool blocks=32 size=4 ahead=on
        add a prompt=a:3 max=9
        add p prompt=p:3 max=9 history=yes
        plan -> +a[0..3]* +p[0..3]*
        plan -> a[3..4]?*
        commit -> 0
        plan -> a[4..5]?* p[3..4]*
        # q joins p in its steps, not in those between
        add q prompt=q:3 max=9 history=yes
        commit -> 0
        plan -> a[5..6]?*
        commit -> 0
        plan -> a[6..7]?* p[4..5]* +q[0..3]*
        commit -> 0
        plan -> a[7..8]?*
        commit -> 0
        plan -> a[8..9]?* p[5..6]* q[3..4]*
        drain -> 3",
    );
}
