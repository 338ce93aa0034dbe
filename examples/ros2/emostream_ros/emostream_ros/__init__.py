"""A ROS 2 node that hands on what emostream publishes. ``mapping`` needs no ROS, ``bridge`` is the node."""
