"""The words of the demo messages: intents, sentence templates, made-up people. Plain data; every person is invented."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Phrasing:
    """Sentences that state one intent: `shared` by both splits, and those that only one split uses."""

    shared: tuple[str, ...]
    train: tuple[str, ...]
    test: tuple[str, ...]


INTENTS: Mapping[str, Phrasing] = MappingProxyType(
    {
        "refund": Phrasing(
            shared=(
                "I would like my money back for the {item}.",
                "I sent the {item} back {days} days ago and the amount is still not on my account.",
                "Please return the {amount} you took for order {order}.",
                "When will I get the {amount} for the {item} I returned?",
                "The {item} does not fit, I want to return it and get paid back.",
                "You charged me twice for order {order}, please pay back {amount}.",
                "I never received the {item} so I expect {amount} back on my card.",
            ),
            train=("How do I get reimbursed for order {order}?", "Kindly issue a refund for the {item}."),
            test=("The {item} went back to you, where is my money?", "Please refund the {amount} to my card."),
        ),
        "delivery": Phrasing(
            shared=(
                "Where is my {item}?",
                "Order {order} was supposed to be here on {weekday} and nothing came.",
                "The tracking for {order} has not moved for {days} days.",
                "Can you tell me when the {item} will arrive?",
                "The courier says it was handed over but I have no {item}.",
                "I have been waiting {days} days for order {order}.",
                "Has the {item} been shipped yet?",
            ),
            train=("Any news on the parcel {order}?", "My package seems lost on the way."),
            test=(
                "It is {weekday} and the {item} has not been delivered.",
                "The driver did not ring, which depot has my {item}?",
            ),
        ),
        "password": Phrasing(
            shared=(
                "I cannot log in to my account {email}.",
                "The reset mail never arrives at {email}.",
                "My password is not accepted any more.",
                "I am locked out after too many attempts.",
                "Please send me a new code, the old one for {email} has expired.",
                "I forgot what I used to sign in with.",
                "Someone changed the login of {email}, let me back in.",
            ),
            train=("How can I reset the password for {email}?", "The sign-in page says unknown user."),
            test=(
                "The verification code for {email} does not come.",
                "My login fails since {weekday} and I have no access.",
            ),
        ),
        "cancel": Phrasing(
            shared=(
                "Please stop order {order}, I do not need the {item} any more.",
                "I want to cancel the {item} before it ships.",
                "Please end my {plan} at the end of the month.",
                "I no longer wish to continue with the {plan}.",
                "I ordered the {item} twice by mistake, take one out please.",
                "Do not renew my {plan} for {amount}.",
                "Can order {order} still be called off?",
            ),
            train=("Kindly cancel {order}.", "How do I terminate the {plan}?"),
            test=(
                "I changed my mind, please cancel the {item}.",
                "Please close the {plan} with effect from {weekday}.",
            ),
        ),
        "invoice": Phrasing(
            shared=(
                "I need an invoice for order {order}.",
                "Please send the receipt over {amount} to {email}.",
                "The bill for the {item} shows the wrong company name.",
                "My accountant asks for the tax number on {order}.",
                "What is the {amount} on my last statement for?",
                "Could you issue the bill for {order} to {company} instead?",
                "The invoice of {order} has no VAT on it.",
            ),
            train=("Where can I download the receipts of this year?", "Please correct the bill over {amount}."),
            test=("{company} needs the invoice over {amount}.", "The PDF of the bill for {order} lists a wrong total."),
        ),
        "complaint": Phrasing(
            shared=(
                "Your agent {first} was rude to me on the phone.",
                "This is the third time I write and nobody answers.",
                "I am very disappointed with how I was treated.",
                "I was put on hold for {days} hours about the {item}, this is unacceptable.",
                "The quality of the {item} is a disgrace, I expected better from you.",
                "Your staff promised to call on {weekday} and never did.",
                "I will tell everyone how badly you handled order {order}.",
            ),
            train=("I want to speak to a manager.", "The worst service I have had in years."),
            test=(
                "{first} from your team was rude and hung up on me.",
                "I am disappointed, nobody answers and nobody cares.",
            ),
        ),
        "technical": Phrasing(
            shared=(
                "The {item} does not turn on.",
                "The app crashes whenever I open order {order}.",
                "My {item} keeps losing the connection.",
                "The website shows an error when I try to pay {amount}.",
                "Since the update the {item} makes a strange noise.",
                "The {item} does not charge past {days} percent.",
                "How do I pair the {item} with my phone?",
            ),
            train=("The {item} freezes all the time.", "The page stays blank after checkout."),
            test=("The screen of the {item} flickers.", "Nothing happens when I press the button of the {item}."),
        ),
        "address": Phrasing(
            shared=(
                "I have moved to {street}, please update it.",
                "Please send order {order} to {street} instead.",
                "My phone number is now {phone}.",
                "The street on order {order} is wrong, it should be {street}.",
                "Please change my mail from {email} to the new one.",
                "My surname is now {last}, please correct my details.",
                "Can the {item} go to my office at {street}?",
            ),
            train=("New address: {street}.", "Please replace my old number by {phone}."),
            test=("From {weekday} on my new address is {street}.", "Please correct my address to {street}."),
        ),
    }
)

GREETINGS = (
    "Hello,",
    "Hi,",
    "Hi there,",
    "Good morning,",
    "Dear team,",
    "Hey",
    "To whom it may concern,",
    "Hello {first},",
)
CONTEXTS = (
    "I bought the {item} on {weekday}.",
    "It is about order {order}.",
    "I am a customer of yours for {days} years.",
    "I paid {amount} for it.",
    "My order number is {order}.",
    "I am writing on behalf of {company}.",
    "I tried to call you on {weekday}.",
    "I already wrote to {first} about this.",
    "The {item} was a present for {first}.",
    "I have my {plan} under {email}.",
)
CLOSINGS = (
    "Thanks!",
    "Thank you in advance.",
    "Please help.",
    "Best regards,",
    "Kind regards,",
    "Cheers,",
    "Asap please.",
)
CONTACTS = (
    "You can reach me at {phone}.",
    "Please answer to {email}.",
    "Call me on {phone} after {weekday}.",
    "My mail is {email}, my phone {phone}.",
    "I live at {street}.",
)

FIRST_NAMES = (
    *("Amara", "Bela", "Carla", "Dmitri", "Elif", "Farid", "Greta", "Hana", "Ilja", "Jonas", "Keiko", "Lamar"),
    *("Mira", "Nadia", "Oskar", "Priya", "Quentin", "Rosa", "Samir", "Tove", "Umar", "Vera", "Wanda", "Yusuf"),
)
LAST_NAMES = (
    *("Abara", "Brandt", "Castell", "Dupree", "Ekberg", "Fontane", "Grzyb", "Holloway", "Ito", "Jansen", "Kowal"),
    *("Lindqvist", "Marchetti", "Nakata", "Okoye", "Petrov", "Quispe", "Rahman", "Sorensen", "Tanaka", "Vargas"),
)
ITEMS = (
    *("kettle", "headphones", "winter coat", "desk lamp", "tablet", "running shoes", "coffee machine", "backpack"),
    *("router", "watch", "camera", "office chair", "blender", "speaker", "vacuum cleaner", "phone case", "printer"),
)
PLANS = ("subscription", "premium plan", "membership", "newsletter box", "monthly plan", "extended warranty")
COMPANIES = ("Birch & Sons", "Halden Tools", "Novaplan", "Studio Okapi", "Verdant Foods", "Quarry Lane Clinic")
STREETS = ("Linden Road", "Harbour Street", "Mill Lane", "Station Square", "Orchard Way", "Castle Hill", "Elm Court")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
